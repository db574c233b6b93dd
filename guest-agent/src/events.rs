//! Events of stream 0: sent to the host that is there, and lost when there is none.

use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::Value;
use crate::frame::{map_frame, Kind};
use crate::stream::Connection;

/// Where events go.
#[derive(Default)]
pub struct Events(Mutex<Option<Arc<Connection>>>);

impl Events {
    /// From now on events go to `connection`.
    pub fn set(&self, connection: Option<Arc<Connection>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// Sends one. A host that comes later learns the same from `exec.list` and `stats`.
    pub fn emit(&self, event: &Value) {
        let target = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(connection) = target {
            connection.link.send_now(connection.epoch, map_frame(Kind::Event, 0, event));
        }
    }
}
