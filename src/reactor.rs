//! One thread per core: the phases of a turn and their budgets.
