"""Files that are copied beside an artifact as they are; nothing here is imported by attar."""
