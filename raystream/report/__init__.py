"""Show results to people: text for terminals, report pages and their plots. It reads the store, and changes nothing but reports."""
