"""One thin typed adapter per library; a vendor is imported only in its adapter, and only when used."""
