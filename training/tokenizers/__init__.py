"""training/tokenizers"""
