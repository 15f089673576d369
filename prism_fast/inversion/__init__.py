"""Images out of a teacher alone: optimised from noise until its batch-norm statistics, classes and rotations fit."""
