"""Folders of scans translated unattended, and the page that says in the morning what came of it."""
