//! `tar.write`: a tree from a tar stream.

use std::sync::Arc;

use crate::failure::{Code, Failure};
use crate::fields::Fields;
use crate::stream::Stream;

/// Receives a tree.
///
/// # Errors
/// `unsupported`.
pub fn write(_fields: &Fields, _stream: &Arc<Stream>) -> Result<(), Failure> {
    Err(Failure::new(Code::Unsupported, "tar.write is not there yet"))
}
