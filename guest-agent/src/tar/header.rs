//! The 512-byte headers of tar (ustar) and the records of pax, both ways. No file is touched here.

use thiserror::Error;

/// Everything in a tar stream comes in blocks of this size.
pub const BLOCK: usize = 512;
/// Where pax keeps extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Why bytes are no tar stream that can be unpacked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TarError {
    /// The stream ends within an entry.
    #[error("the archive is truncated")]
    Truncated,
    /// The checksum of a header is wrong.
    #[error("the archive has a header with a wrong checksum")]
    Checksum,
    /// A number that is none, or a record that is malformed.
    #[error("the archive has a malformed {0}")]
    Malformed(&'static str),
    /// A kind of entry that is not supported.
    #[error("the archive has an entry of the unsupported type {0:?}")]
    Type(char),
    /// Names or attributes larger than a megabyte.
    #[error("the archive has an entry with too much metadata")]
    TooLarge,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
        }
    }
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: i64,
    pub link: Vec<u8>,
    pub major: u32,
    pub minor: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The entry's header blocks: pax records first, where ustar cannot hold a value.
    pub fn encode(&self) -> Vec<u8> {
        let mut name = self.name.clone();
        if self.kind == Kind::Dir && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let mut records = Vec::new();
        let mut add = |key: &[u8], value: &[u8]| record(key, value, &mut records);
        if name.len() > 100 {
            add(b"path", &name);
        }
        if self.link.len() > 100 {
            add(b"linkpath", &self.link);
        }
        for (key, value, limit) in [
            (&b"uid"[..], self.uid, 0o7_777_777),
            (b"gid", self.gid, 0o7_777_777),
            (b"size", self.size, 0o77_777_777_777),
        ] {
            if value > limit {
                add(key, value.to_string().as_bytes());
            }
        }
        if !(0..=0o77_777_777_777).contains(&self.mtime) {
            add(b"mtime", self.mtime.to_string().as_bytes());
        }
        for (key, value) in &self.xattrs {
            add(&[XATTR, key].concat(), value);
        }
        let mut blocks = Vec::with_capacity(BLOCK);
        if !records.is_empty() {
            let extended = Entry { size: records.len() as u64, link: vec![], ..self.clone() };
            blocks.extend_from_slice(&extended.ustar(b"PaxHeaders", b'x'));
            blocks.extend_from_slice(&records);
            blocks.resize(blocks.len() + padding(records.len() as u64), 0);
        }
        blocks.extend_from_slice(&self.ustar(&name, self.kind.flag()));
        blocks
    }

    fn ustar(&self, name: &[u8], flag: u8) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let copy = |target: &mut [u8], bytes: &[u8]| {
            let length = bytes.len().min(target.len());
            target[..length].copy_from_slice(&bytes[..length]);
        };
        copy(&mut block[..100], name);
        octal(&mut block[100..108], u64::from(self.mode & 0o7777));
        octal(&mut block[108..116], self.uid);
        octal(&mut block[116..124], self.gid);
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], u64::try_from(self.mtime).unwrap_or(0));
        block[156] = flag;
        copy(&mut block[157..257], &self.link);
        copy(&mut block[257..265], b"ustar\x0000");
        octal(&mut block[329..337], u64::from(self.major));
        octal(&mut block[337..345], u64::from(self.minor));
        let sum = checksum(&block);
        octal(&mut block[148..155], sum);
        block[155] = b' ';
        block
    }
}

/// Zeros after `size` bytes of content.
pub fn padding(size: u64) -> usize {
    (BLOCK as u64 - size % BLOCK as u64) as usize % BLOCK
}

/// A value that does not fit is left at its largest: a pax record holds the real one.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let value = value.min((1 << (3 * digits)) - 1);
    for (at, byte) in field[..digits].iter_mut().enumerate() {
        *byte = b'0' + (value >> (3 * (digits - 1 - at)) & 7) as u8;
    }
}

fn checksum(block: &[u8; BLOCK]) -> u64 {
    let spaces = 8 * u64::from(b' ');
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(&block[..148]) + spaces + sum(&block[156..])
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// A block of zeros: the end.
    End,
    /// An entry, to be completed by what came before.
    Entry(Box<Entry>),
    /// That many bytes follow which describe the next entry.
    Extension(Extension, u64),
}

/// What an extension holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Extension {
    Pax,
    Global,
    LongName,
    LongLink,
}

/// Reads a header block.
///
/// # Errors
/// [`TarError`] for what is no header, or one of an unsupported kind.
pub fn parse(block: &[u8; BLOCK]) -> Result<Header, TarError> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Header::End);
    }
    if number(&block[148..156], "checksum")? != checksum(block) {
        return Err(TarError::Checksum);
    }
    let size = number(&block[124..136], "size")?;
    let kind = match block[156] {
        b'0' | b'7' | 0 => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        b'x' => return Ok(Header::Extension(Extension::Pax, size)),
        b'g' => return Ok(Header::Extension(Extension::Global, size)),
        b'L' => return Ok(Header::Extension(Extension::LongName, size)),
        b'K' => return Ok(Header::Extension(Extension::LongLink, size)),
        other => return Err(TarError::Type(char::from(other))),
    };
    let mut name = text(&block[..100]).to_vec();
    // The prefix is ustar's; GNU's own format has other things there.
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        name = [text(&block[345..500]), b"/", &name].concat();
    }
    // Before POSIX a directory was a file whose name ends with a slash.
    let kind = match kind {
        Kind::File if name.ends_with(b"/") => Kind::Dir,
        kind => kind,
    };
    let device = |range: std::ops::Range<usize>| match kind {
        Kind::Char | Kind::Block => number(&block[range], "device number").map(|it| it as u32),
        _ => Ok(0),
    };
    Ok(Header::Entry(Box::new(Entry {
        name,
        kind,
        mode: number(&block[100..108], "mode")? as u32 & 0o7777,
        uid: number(&block[108..116], "owner")?,
        gid: number(&block[116..124], "group")?,
        size: if kind == Kind::File { size } else { 0 },
        mtime: number(&block[136..148], "time")? as i64,
        link: text(&block[157..257]).to_vec(),
        major: device(329..337)?,
        minor: device(337..345)?,
        xattrs: vec![],
    })))
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// Octal, or GNU's base 256 for what octal cannot hold (negative times included).
fn number(field: &[u8], what: &'static str) -> Result<u64, TarError> {
    if field[0] & 0x80 != 0 {
        let first = i64::from((field[0] << 1) as i8 >> 1);
        let value = field[1..].iter().try_fold(first, |value, byte| {
            value.checked_mul(256).map(|value| value | i64::from(*byte))
        });
        return value.map(|value| value as u64).ok_or(TarError::Malformed(what));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | u64::from(digit - b'0')),
        _ => Err(TarError::Malformed(what)),
    })
}

/// Applies the records of a pax header to the entry that follows it.
///
/// # Errors
/// [`TarError::Malformed`], or [`TarError::Type`] for GNU's sparse files.
pub fn apply_pax(mut records: &[u8], entry: &mut Entry) -> Result<(), TarError> {
    let malformed = TarError::Malformed("pax record");
    let decimal =
        |value: &[u8]| std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ');
        let length = space.and_then(|at| decimal(&records[..at])).map(|length| length as usize);
        let (Some(space), Some(length)) = (space, length) else { return Err(malformed) };
        if length > records.len() || length < space + 2 || records[length - 1] != b'\n' {
            return Err(malformed);
        }
        let pair = &records[space + 1..length - 1];
        let Some(equals) = pair.iter().position(|byte| *byte == b'=') else {
            return Err(malformed);
        };
        let (key, value) = (&pair[..equals], &pair[equals + 1..]);
        let integer = || decimal(value).ok_or(TarError::Malformed("pax record"));
        match key {
            b"path" => entry.name = value.to_vec(),
            b"linkpath" => entry.link = value.to_vec(),
            b"uid" => entry.uid = integer()?,
            b"gid" => entry.gid = integer()?,
            b"size" if entry.kind == Kind::File => entry.size = integer()?,
            b"mtime" => {
                let seconds = value.split(|byte| *byte == b'.').next().unwrap_or(value);
                let seconds = std::str::from_utf8(seconds).ok().and_then(|it| it.parse().ok());
                entry.mtime = seconds.ok_or(TarError::Malformed("time"))?;
            }
            _ if key.starts_with(b"GNU.sparse.") => return Err(TarError::Type('S')),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    entry.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        records = &records[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            name: b"dir/file".to_vec(),
            kind: Kind::File,
            mode: 0o4755,
            uid: 1000,
            gid: 7,
            size: 5,
            mtime: 1_700_000_000,
            link: vec![],
            major: 0,
            minor: 0,
            xattrs: vec![],
        }
    }

    fn decode(blocks: &[u8]) -> Entry {
        let mut pax: &[u8] = &[];
        let mut at = 0;
        loop {
            let block = blocks[at..].first_chunk().unwrap();
            at += BLOCK;
            match parse(block).unwrap() {
                Header::Extension(Extension::Pax, size) => {
                    pax = &blocks[at..at + size as usize];
                    at += size as usize + padding(size);
                }
                Header::Entry(mut entry) => {
                    apply_pax(pax, &mut entry).unwrap();
                    return *entry;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn entries_survive_a_round_trip() {
        assert_eq!(entry().encode().len(), BLOCK);
        assert_eq!(decode(&entry().encode()), entry());
        let large = Entry {
            name: vec![b'n'; 300],
            link: vec![b'l'; 101],
            kind: Kind::HardLink,
            uid: 1 << 31,
            mtime: -5,
            size: 0,
            xattrs: vec![(b"security.capability".to_vec(), vec![0, 10, 61, 255])],
            ..entry()
        };
        assert_eq!(decode(&large.encode()), large);
        assert_eq!(decode(&Entry { size: 1 << 40, ..entry() }.encode()).size, 1 << 40);
    }

    #[test]
    fn record_lengths_count_themselves() {
        for size in [1, 89, 90, 91, 92, 93, 94, 95, 989, 990, 991, 992, 993] {
            let mut out = Vec::new();
            record(b"path", &vec![b'x'; size], &mut out);
            let mut parsed = entry();
            apply_pax(&out, &mut parsed).unwrap();
            assert_eq!(parsed.name.len(), size);
        }
    }

    #[test]
    fn malformed_archives_are_refused() {
        let mut block = *entry().encode().first_chunk::<BLOCK>().unwrap();
        block[0] ^= 1;
        assert_eq!(parse(&block), Err(TarError::Checksum));
        assert_eq!(parse(&[0; BLOCK]), Ok(Header::End));
        for bad in [&b"9 path=ab"[..], b"x", b"99 a=b\n", b"4 a\n", b"0 \n"] {
            assert!(apply_pax(bad, &mut entry()).is_err());
        }
        assert_eq!(number(&[0xff; 12], "x"), Ok(-1i64 as u64));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 1], "x"), Ok(1));
        assert!(number(b"12z", "x").is_err());
    }
}
