"""What a study will take, before it takes it: texts, tokens, operations, memory, disk, hours, money."""
