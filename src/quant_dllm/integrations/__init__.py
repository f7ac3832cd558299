"""Where other libraries meet this one; nothing here is imported before they are."""
