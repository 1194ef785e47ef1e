"""What leaderboard.py is made of; nothing here imports torch."""
