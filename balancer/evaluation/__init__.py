"""Does the balanced dataset help, and is it diverse?"""
