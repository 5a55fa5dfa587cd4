//! Slots with generations, for connections and sessions.                                                   [slab]
