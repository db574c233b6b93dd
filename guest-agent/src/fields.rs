//! Typed access to the fields of a request map: required or optional, checked for type and range.

use crate::codec::Value;
use crate::failure::{Code, Failure};

/// The map of one request or of one CONTROL frame.
#[derive(Debug)]
pub struct Fields(Value);

impl Fields {
    /// Wraps a decoded payload.
    ///
    /// # Errors
    /// `bad_request` when it is no map.
    pub fn new(value: Value) -> Result<Fields, Failure> {
        match value {
            Value::Map(_) => Ok(Fields(value)),
            _ => Err(Failure::new(Code::BadRequest, "the request is not a map")),
        }
    }

    /// The value of `key`; nil counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| **value != Value::Nil)
    }

    /// A required text.
    pub fn str(&self, key: &str) -> Result<&str, Failure> {
        self.opt_str(key)?.ok_or_else(|| missing(key))
    }

    /// An optional text.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, Failure> {
        self.typed(key, "a text", |value| match value {
            Value::Str(text) => Some(text.as_str()),
            Value::Bin(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    /// Required bytes (a text is accepted).
    pub fn bytes(&self, key: &str) -> Result<&[u8], Failure> {
        self.opt_bytes(key)?.ok_or_else(|| missing(key))
    }

    /// Optional bytes (a text is accepted).
    pub fn opt_bytes(&self, key: &str) -> Result<Option<&[u8]>, Failure> {
        self.typed(key, "bytes", as_bytes)
    }

    /// A required path: not empty and without NUL.
    pub fn path(&self, key: &str) -> Result<&[u8], Failure> {
        let path = self.bytes(key)?;
        if path.is_empty() || path.contains(&0) {
            return Err(Failure::new(Code::BadRequest, format!("{key} is not a path")));
        }
        Ok(path)
    }

    /// An optional list of bytes; absent is empty.
    pub fn bytes_list(&self, key: &str) -> Result<Vec<Vec<u8>>, Failure> {
        let list = self.typed(key, "a list of bytes", |value| match value {
            Value::Array(values) => {
                values.iter().map(|value| as_bytes(value).map(<[u8]>::to_vec)).collect()
            }
            _ => None,
        })?;
        Ok(list.unwrap_or_default())
    }

    /// A flag, with its default.
    pub fn bool(&self, key: &str, default: bool) -> Result<bool, Failure> {
        Ok(self.opt_bool(key)?.unwrap_or(default))
    }

    /// An optional flag.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, Failure> {
        self.typed(key, "a flag", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An optional unsigned number.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, Failure> {
        self.typed(key, "a number", |value| match value {
            Value::Uint(number) => Some(*number),
            _ => None,
        })
    }

    /// An unsigned number, with its default.
    pub fn u64(&self, key: &str, default: u64) -> Result<u64, Failure> {
        Ok(self.opt_u64(key)?.unwrap_or(default))
    }

    /// An optional number that fits 32 bits: an id, a mode, a signal.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, Failure> {
        self.typed(key, "a number of 32 bits", |value| match value {
            Value::Uint(number) => u32::try_from(*number).ok(),
            _ => None,
        })
    }

    /// An optional map within this one.
    pub fn opt_map(&self, key: &str) -> Result<Option<Fields>, Failure> {
        self.typed(key, "a map", |value| match value {
            Value::Map(_) => Some(Fields(value.clone())),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => convert(value)
                .map(Some)
                .ok_or_else(|| Failure::new(Code::BadRequest, format!("{key} is not {kind}"))),
        }
    }
}

fn as_bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bin(bytes) => Some(bytes),
        Value::Str(text) => Some(text.as_bytes()),
        _ => None,
    }
}

fn missing(key: &str) -> Failure {
    Failure::new(Code::BadRequest, format!("{key} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map;

    #[test]
    fn fields_are_typed() {
        let fields = Fields::new(map! {
            "text" => "a", "path" => vec![0xffu8], "flag" => true, "nil" => Value::Nil,
            "list" => vec![Value::from("a"), Value::from(vec![1u8])], "wide" => 1u64 << 40,
        })
        .unwrap();
        assert_eq!(fields.str("text").unwrap(), "a");
        assert_eq!(fields.path("path").unwrap(), [0xff]);
        assert!(fields.bool("flag", false).unwrap());
        assert!(fields.bool("nil", true).unwrap());
        assert_eq!(fields.bytes_list("list").unwrap(), [b"a".to_vec(), vec![1]]);
        assert_eq!(fields.str("none").unwrap_err().code, Code::BadRequest);
        assert_eq!(fields.opt_u32("wide").unwrap_err().code, Code::BadRequest);
        assert_eq!(fields.opt_str("flag").unwrap_err().code, Code::BadRequest);
    }
}
