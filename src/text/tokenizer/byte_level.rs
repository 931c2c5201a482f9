//! Byte-level vocabularies, as GPT-2's: each byte of a text is written as one character.

/// Whether a byte is written as the character of the same number.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes that are not, in order: `Ā` and the characters after it.
fn others() -> impl Iterator<Item = u8> {
    (0..=255).filter(|byte| !is_printable(*byte))
}

/// The character that a byte is written as.
pub(super) fn byte_char(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let place = others().take_while(|other| *other < byte).count() as u32;
    char::from_u32(256 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes that a token's characters stand for; `None` where one of them stands for none.
pub(super) fn bytes(token: &str) -> Option<Vec<u8>> {
    let byte = |c: char| match u8::try_from(c) {
        Ok(byte) => Some(byte).filter(|byte| is_printable(*byte)),
        Err(_) => others().nth(u32::from(c).checked_sub(256)? as usize),
    };
    token.chars().map(byte).collect()
}

/// UTF-8 as text, other bytes as `<0xE2>`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("<0x{byte:02X}>")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_character_of_its_own() {
        let all: String = (0..=255).map(byte_char).collect();
        assert_eq!(bytes(&all).unwrap(), (0..=255).collect::<Vec<u8>>());
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(0), byte_char(0xad)), ('Ġ', 'Ċ', 'Ā', 'Ń'));
        assert_eq!(bytes("Ã©").unwrap(), "é".as_bytes());
        assert_eq!(bytes(" "), None); // a space is written as `Ġ`
        assert_eq!(bytes("中"), None);
    }

    #[test]
    fn bytes_that_are_no_character_are_written_out() {
        assert_eq!(escaped(b" caf\xc3"), " caf<0xC3>");
        assert_eq!(escaped(b"\xa9 \xe2\x80"), "<0xA9> <0xE2><0x80>");
        assert_eq!(escaped("é\u{fffd}".as_bytes()), "é\u{fffd}");
    }
}
