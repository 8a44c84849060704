"""What a person looks at: tables, bars and plots."""
