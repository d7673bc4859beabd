"""From a sweep's results to pictures and words: figures, the page, and the explorer.

Reads the files that a sweep left; imports neither torch nor anything that measures.
"""
