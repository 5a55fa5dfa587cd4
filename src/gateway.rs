//! Assembly: mailboxes, a reactor per core, store, admin; ready, drain, stop; panic policy.
