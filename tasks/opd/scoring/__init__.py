"""What the teacher sees, and what it says of every token.

contexts       the teacher's prompt
self_teachers  which version of the student teaches
score          the stage `scores`: signals as files and back
"""
