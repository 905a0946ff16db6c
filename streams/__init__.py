"""EVENT → FEATURE and FEEDBACK → EXAMPLE: event schema, topics, collector and Faust agents."""
