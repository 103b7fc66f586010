"""What a person starts: demo, page, reports, figures, converters."""
