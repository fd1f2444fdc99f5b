//! Names and values from outside as they stand in a message: on one line, and not too much of it.

/// Most characters of one text.
const MOST: usize = 200;

/// The text with control characters escaped, cut after [`MOST`] characters.
pub(crate) fn line(text: &str) -> String {
    let mut short = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MOST {
            short.push('…');
            break;
        }
        if c.is_control() {
            short.extend(c.escape_default());
        } else {
            short.push(c);
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_and_no_more_than_that() {
        assert_eq!(line("a\nb\r\u{1b}[0mü"), "a\\nb\\r\\u{1b}[0mü");
        assert_eq!(line(&"x".repeat(500)).chars().count(), MOST + 1);
        assert_eq!(line(&"x".repeat(MOST)), "x".repeat(MOST));
    }
}
