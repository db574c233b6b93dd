//! As much JSON as the golden frames need.

use hutch_agent::codec::Value;

pub fn parse(text: &str) -> Value {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    let value = reader.value();
    reader.space();
    assert_eq!(reader.at, reader.bytes.len(), "trailing text");
    value
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str, value: Value) -> Value {
        assert!(self.bytes[self.at..].starts_with(word.as_bytes()));
        self.at += word.len();
        value
    }

    fn value(&mut self) -> Value {
        self.space();
        match self.bytes[self.at] {
            b'{' => self.object(),
            b'[' => self.array(),
            b'"' => Value::Str(self.text()),
            b't' => self.word("true", true.into()),
            b'f' => self.word("false", false.into()),
            b'n' => self.word("null", Value::Nil),
            _ => self.number(),
        }
    }

    fn object(&mut self) -> Value {
        let mut pairs = Vec::new();
        assert!(self.eat(b'{'));
        while !self.eat(b'}') {
            self.space();
            let key = self.text();
            assert!(self.eat(b':'));
            pairs.push((key, self.value()));
            self.eat(b',');
        }
        Value::Map(pairs)
    }

    fn array(&mut self) -> Value {
        let mut values = Vec::new();
        assert!(self.eat(b'['));
        while !self.eat(b']') {
            values.push(self.value());
            self.eat(b',');
        }
        Value::Array(values)
    }

    fn text(&mut self) -> String {
        assert!(self.eat(b'"'));
        let mut text = Vec::new();
        loop {
            let byte = self.bytes[self.at];
            self.at += 1;
            match byte {
                b'"' => return String::from_utf8(text).unwrap(),
                b'\\' => {
                    let escaped = self.bytes[self.at];
                    self.at += 1;
                    match escaped {
                        b'n' => text.push(b'\n'),
                        b't' => text.push(b'\t'),
                        b'r' => text.push(b'\r'),
                        b'u' => {
                            let digits = &self.bytes[self.at..self.at + 4];
                            let digits = std::str::from_utf8(digits).unwrap();
                            let letter = u32::from_str_radix(digits, 16).unwrap();
                            let letter = char::from_u32(letter).unwrap();
                            text.extend_from_slice(letter.to_string().as_bytes());
                            self.at += 4;
                        }
                        other => text.push(other),
                    }
                }
                other => text.push(other),
            }
        }
    }

    fn number(&mut self) -> Value {
        let from = self.at;
        while self.bytes.get(self.at).is_some_and(|byte| b"+-.eE0123456789".contains(byte)) {
            self.at += 1;
        }
        let text = std::str::from_utf8(&self.bytes[from..self.at]).unwrap();
        if let Ok(number) = text.parse::<u64>() {
            return number.into();
        }
        text.parse::<i64>().map_or_else(|_| text.parse::<f64>().unwrap().into(), Value::from)
    }
}
