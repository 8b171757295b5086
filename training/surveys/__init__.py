"""training/surveys"""
