"""app/gallery"""
