//! [`TerminalImages`]: images within a terminal.

use std::io::{IsTerminal, Write as _};

use base64::prelude::{Engine as _, BASE64_STANDARD};

use super::figure::Figure;
use crate::{Error, Result};

/// How a terminal is told to show an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TerminalImages {
    /// Kitty's graphics protocol: kitty, Ghostty, Konsole.
    Kitty,
    /// iTerm2's inline images: iTerm2, WezTerm, mintty.
    Iterm,
}

/// The longest part of an image in one of kitty's commands.
const PART: usize = 4096;
/// Pixels for each unit of a figure's SVG.
#[cfg(feature = "png")]
const SCALE: f32 = 1.5;

impl TerminalImages {
    /// What the terminal of this process understands, by the variables that terminals set. `None` where the standard output is no terminal,
    /// and within tmux and screen, which pass no images on.
    pub fn detect() -> Option<Self> {
        if !std::io::stdout().is_terminal() {
            return None;
        }
        Self::of_environment(|name| std::env::var(name).ok())
    }

    fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let [term, program] = ["TERM", "TERM_PROGRAM"].map(|name| variable(name).unwrap_or_default());
        if variable("TMUX").is_some() || term.starts_with("screen") || term.starts_with("tmux") {
            return None;
        }
        if ["iTerm.app", "WezTerm", "mintty"].contains(&program.as_str()) {
            return Some(TerminalImages::Iterm);
        }
        let is_kitty = variable("KITTY_WINDOW_ID").is_some() || variable("KONSOLE_VERSION").is_some();
        (is_kitty || term.contains("kitty") || term.contains("ghostty") || program == "ghostty")
            .then_some(TerminalImages::Kitty)
    }

    /// What makes the terminal show the image in a PNG file, a line of its own.
    pub fn command(self, png: &[u8]) -> String {
        let encoded = BASE64_STANDARD.encode(png);
        match self {
            TerminalImages::Iterm => format!("\x1b]1337;File=inline=1;size={}:{encoded}\x07\n", png.len()),
            TerminalImages::Kitty => {
                let parts: Vec<&str> =
                    encoded.as_bytes().chunks(PART).filter_map(|part| std::str::from_utf8(part).ok()).collect();
                let command = |(nth, part): (usize, &&str)| {
                    let first = if nth == 0 { "f=100,a=T," } else { "" };
                    let more = usize::from(nth + 1 < parts.len());
                    format!("\x1b_G{first}m={more};{part}\x1b\\")
                };
                parts.iter().enumerate().map(command).collect::<String>() + "\n"
            }
        }
    }
}

/// Prints a figure: as an image where the terminal shows these, else as text.
pub(super) fn show(figure: &Figure) -> Result<()> {
    let text = match TerminalImages::detect() {
        Some(images) => image(images, figure)?,
        None => format!("{figure}\n"),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("the standard output"))
}

#[cfg(feature = "png")]
fn image(images: TerminalImages, figure: &Figure) -> Result<String> {
    let caption = super::visible::visible(figure.caption());
    Ok(format!("{}\n{}{caption}\n", super::visible::visible(figure.title()), images.command(&figure.to_png(SCALE)?)))
}

/// Without a renderer there is no image.
#[cfg(not(feature = "png"))]
fn image(_images: TerminalImages, figure: &Figure) -> Result<String> {
    Ok(format!("{figure}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_known_by_their_variables() {
        let of = |pairs: &[(&str, &str)]| {
            let find = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
            TerminalImages::of_environment(find)
        };
        assert_eq!(of(&[("TERM", "xterm-kitty")]), Some(TerminalImages::Kitty));
        assert_eq!(of(&[("KITTY_WINDOW_ID", "1"), ("TERM", "xterm-256color")]), Some(TerminalImages::Kitty));
        assert_eq!(of(&[("TERM", "xterm-ghostty"), ("TERM_PROGRAM", "ghostty")]), Some(TerminalImages::Kitty));
        assert_eq!(of(&[("TERM_PROGRAM", "WezTerm"), ("TERM", "xterm-256color")]), Some(TerminalImages::Iterm));
        assert_eq!(of(&[("TERM_PROGRAM", "iTerm.app")]), Some(TerminalImages::Iterm));
        assert_eq!(of(&[("TERM", "xterm-256color")]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("TERM", "tmux-256color"), ("KITTY_WINDOW_ID", "1")]), None);
        assert_eq!(of(&[("TMUX", "/tmp/x"), ("TERM_PROGRAM", "iTerm.app")]), None);
    }

    #[test]
    fn an_image_arrives_whole() {
        for len in [0, 1, 3071, 3072, 3073, 10_000] {
            let png: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let text = TerminalImages::Iterm.command(&png);
            let (head, rest) = text.split_once(':').unwrap();
            assert_eq!(head, format!("\x1b]1337;File=inline=1;size={len}"));
            assert_eq!(BASE64_STANDARD.decode(rest.strip_suffix("\x07\n").unwrap()).unwrap(), png);
            let text = TerminalImages::Kitty.command(&png);
            let parts: Vec<(&str, &str)> = text
                .split("\x1b\\")
                .filter_map(|part| part.strip_prefix("\x1b_G"))
                .map(|part| part.split_once(';').unwrap())
                .collect();
            let joined: String = parts.iter().map(|(_, data)| *data).collect();
            assert_eq!(BASE64_STANDARD.decode(joined).unwrap(), png);
            for (nth, (keys, data)) in parts.iter().enumerate() {
                let more = if nth + 1 < parts.len() { "m=1" } else { "m=0" };
                assert_eq!(*keys, if nth == 0 { format!("f=100,a=T,{more}") } else { more.to_string() });
                assert!(data.len() <= PART && (nth + 1 == parts.len() || data.len() % 4 == 0));
            }
        }
    }
}
