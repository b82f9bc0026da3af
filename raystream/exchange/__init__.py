"""What leaves raystream and comes back: text for terminals, report pages, and files for labelling tools."""
