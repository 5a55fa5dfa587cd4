//! Where the C library looks names up.                                                                                  [libc]

/// Names are looked up in `/etc/hosts` and by DNS alone, whatever `/etc/nsswitch.conf` says: its other services are code to be loaded,
/// which a static binary must not do.
pub fn use_files_and_dns() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the signature is that of `nss.h`, glibc 2.1 and later.
        unsafe extern "C" {
            fn __nss_configure_lookup(database: *const libc::c_char, services: *const libc::c_char) -> libc::c_int;
        }
        // SAFETY: both end with a zero and live for ever; the call copies what it needs. No other thread looks names up yet.
        unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    }
}
