"""Latest state: the teacher's newest state of a user or an item as an input token."""
