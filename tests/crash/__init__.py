"""Every state that a power cut may leave behind: built, recovered, judged."""
