//! Many cells as one image: a PNG within the SVG.

use std::io::Write as _;

use base64::prelude::{Engine as _, BASE64_STANDARD};
use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::super::color_scale::Rgb;

/// An image of coloured cells, row by row, as a `data:` address.
pub(super) fn data_address(columns: usize, pixels: &[Rgb]) -> std::io::Result<String> {
    Ok(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png(columns, pixels)?)))
}

/// A PNG of 8 bits a channel.
fn png(columns: usize, pixels: &[Rgb]) -> std::io::Result<Vec<u8>> {
    let rows = pixels.len().checked_div(columns).unwrap_or(0);
    let mut data = ZlibEncoder::new(Vec::new(), Compression::default());
    for row in pixels.chunks(columns.max(1)) {
        data.write_all(&[0])?; // no filter
        data.write_all(row.as_flattened())?;
    }
    let mut header = Vec::new();
    header.extend((columns as u32).to_be_bytes());
    header.extend((rows as u32).to_be_bytes());
    header.extend([8, 2, 0, 0, 0]); // bits, RGB, and the only kinds of compression, filter and order
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut file, b"IHDR", &header);
    chunk(&mut file, b"IDAT", &data.finish()?);
    chunk(&mut file, b"IEND", &[]);
    Ok(file)
}

fn chunk(file: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(name);
    file.extend(data);
    let mut sum = Crc::new();
    sum.update(name);
    sum.update(data);
    file.extend(sum.sum().to_be_bytes());
}
