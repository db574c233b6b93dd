//! `tar.read`: a tree as a tar stream.

use std::sync::Arc;

use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::stream::Stream;

/// Sends a tree.
///
/// # Errors
/// `unsupported`.
pub fn read(_fields: &Fields, _stream: &Arc<Stream>) -> Result<(), Failure> {
    Err(Failure::new(Code::Unsupported, "tar.read is not there yet"))
}
