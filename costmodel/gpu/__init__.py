"""What a GPU kernel's code will need, predicted from its spec and schedule: registers, shared memory, spills, instructions."""
