"""gptcli turns raw text into a GPT-2 of your own: pretrain it, then generate from it."""

__version__ = "0.1.0"
