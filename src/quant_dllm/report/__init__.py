"""What runs leave for people: tables and pictures, made of records."""
