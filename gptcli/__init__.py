"""gptcli turns raw text into a GPT-2 of your own: pretrain it, fine-tune it, use it."""

__version__ = "0.1.0"
