//! Kubernetes' quantities as whole bytes, as far as sizes of disks and quotas need them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The suffixes with the power that they stand for: (suffix, base, exponent).
const SUFFIXES: &[(&str, u128, u32)] = &[
    ("Ki", 1024, 1),
    ("Mi", 1024, 2),
    ("Gi", 1024, 3),
    ("Ti", 1024, 4),
    ("Pi", 1024, 5),
    ("Ei", 1024, 6),
    ("k", 1000, 1),
    ("M", 1000, 2),
    ("G", 1000, 3),
    ("T", 1000, 4),
    ("P", 1000, 5),
    ("E", 1000, 6),
    ("", 1, 0),
];

/// Most digits that are read; more than any disk has, few enough that nothing overflows.
const MAX_DIGITS: usize = 18;

/// The quantity in bytes, rounded up as Kubernetes does; `None` when it is not a size: negative,
/// malformed or larger than `u64`.
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let multiplier = multiplier(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > MAX_DIGITS || fraction.contains('.') {
        return None;
    }
    let digits: u128 = digits.parse().ok()?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let product = digits.checked_mul(multiplier.0)?;
    u64::try_from(product.div_ceil(scale.checked_mul(multiplier.1)?)).ok()
}

/// What a suffix multiplies with and divides by.
fn multiplier(suffix: &str) -> Option<(u128, u128)> {
    if suffix == "m" {
        return Some((1, 1000));
    }
    if let Some((_, base, exponent)) = SUFFIXES.iter().find(|(known, ..)| *known == suffix) {
        return Some((base.pow(*exponent), 1));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10u128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

/// A size for people: rounded up to mebibytes, and above 32 MiB to a sixteenth of its magnitude,
/// so that a status that shows it is not rewritten for every key.
pub fn rounded(bytes: u64) -> String {
    const MI: u64 = 1 << 20;
    let step = (bytes.max(1).ilog2().saturating_sub(4)).max(20);
    let unit = 1u64 << step;
    let up = bytes.div_ceil(unit).saturating_mul(unit);
    format!("{}Mi", up / MI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes() {
        let cases: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("8Gi", Some(8 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("8G", Some(8_000_000_000)),
            ("100k", Some(100_000)),
            ("1e3", Some(1000)),
            ("5E2", Some(500)),
            ("1500m", Some(2)),
            ("12", Some(12)),
            ("1Ei", Some(1 << 60)),
            ("", None),
            ("Gi", None),
            ("-1Gi", None),
            ("1.2.3Gi", None),
            ("1Zi", None),
            ("99999999Ei", None),
            ("1e999", None),
            ("1234567890123456789", None),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(&Quantity((*text).into())), *expected, "{text}");
        }
    }

    #[test]
    fn sizes_for_people_are_coarse() {
        for (bytes, expected) in [
            (0, "0Mi"),
            (1, "1Mi"),
            (25 << 20, "25Mi"),
            ((25 << 20) + 1, "26Mi"),
            ((100 << 20) + 1, "104Mi"),
            (1 << 30, "1024Mi"),
            ((1 << 30) + 1, "1088Mi"),
        ] {
            assert_eq!(rounded(bytes), expected, "{bytes}");
        }
    }
}
