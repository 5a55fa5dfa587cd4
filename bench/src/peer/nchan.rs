//! Nchan, a module of nginx: a location is a room, a frame is a message.

use std::path::{Path, PathBuf};

use super::{Heard, Peer};
use crate::client::{Outbox, Ready};

/// See the module text.
pub struct Nchan;

/// One worker, in the foreground; messages are passed on and not kept.
///
/// # Errors
/// The folder has no absolute name.
pub fn configuration(folder: &Path, port: u16) -> Result<(&'static str, String, &'static [&'static str]), String> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()));
    let (folder, module) = (absolute(folder)?, absolute(&module())?);
    let (folder, module) = (folder.display(), module.display());
    let text = format!(
        "load_module {module};\ndaemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log error;\n\
         worker_rlimit_nofile 20000;\nevents {{ worker_connections 18000; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n\
         \x20 fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n\
         \x20 nchan_shared_memory_size 256m;\n  server {{\n    listen 127.0.0.1:{port} backlog=4096;\n\
         \x20   location /room {{ nchan_pubsub websocket; nchan_channel_id room; nchan_store_messages off; }}\n  }}\n}}\n"
    );
    Ok(("nginx.conf", text, &["-c"]))
}

/// The module, out of Debian's package.
pub fn module() -> PathBuf {
    Path::new(crate::server::PEERS).join("nchan/usr/lib/nginx/modules/ngx_nchan_module.so")
}

impl Peer for Nchan {
    fn path(&self) -> &'static str {
        "/room"
    }

    fn subprotocol(&self) -> Option<&'static str> {
        None
    }

    fn hears_itself(&self) -> bool {
        true
    }

    fn enter(&mut self, _: usize, _: &mut Outbox<'_>) -> Ready {
        Ready::Yes
    }

    fn hear(&mut self, _: usize, _: &[u8], _: &mut Outbox<'_>) -> Result<Heard, String> {
        Ok(Heard { deliveries: 1, has_entered: false })
    }

    fn publish(&mut self, count: usize, payload: &[u8], out: &mut Outbox<'_>) {
        (0..count).for_each(|_| out.message(|bytes| bytes.extend_from_slice(payload)));
    }
}
