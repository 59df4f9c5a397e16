//! What an expression cannot say of the numbers that system patterns look for.

/// A look at a candidate that an expression has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check(fn(&str) -> Option<usize>);

impl Check {
    /// The check of a system pattern.
    pub(super) fn of(pattern: &str) -> Option<Self> {
        Some(Self(match pattern {
            "payment_card" => payment_card,
            "iban" => iban,
            "us_ssn" => |text| whole(text, us_ssn(text)),
            "es_dni" => |text| whole(text, es_dni(text)),
            "br_cpf" => |text| whole(text, br_cpf(text)),
            "de_tax_id" => |text| whole(text, de_tax_id(text)),
            "ip_address" => |text| whole(text, text.parse::<std::net::IpAddr>().is_ok()),
            _ => return None,
        }))
    }

    /// How many bytes of the candidate, from its start, are what is looked for.
    pub(super) fn length(self, candidate: &str) -> Option<usize> {
        (self.0)(candidate)
    }
}

fn whole(text: &str, holds: bool) -> Option<usize> {
    holds.then_some(text.len())
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

/// A card's number of 13 to 19 digits (ISO/IEC 7812-1), perhaps with other digits behind
/// it that stand apart.
fn payment_card(text: &str) -> Option<usize> {
    let cuts = text.rmatch_indices([' ', '-']).map(|(at, _)| at);
    std::iter::once(text.len()).chain(cuts).find(|end| {
        let digits = digits(text.get(..*end).unwrap_or_default());
        (13..=19).contains(&digits.len()) && luhn(&digits)
    })
}

fn luhn(digits: &[u32]) -> bool {
    let doubled = |(place, digit): (usize, &u32)| match (place % 2, digit * 2) {
        (0, _) => *digit,
        (_, twice) if twice > 9 => twice - 9,
        (_, twice) => twice,
    };
    let sum: u32 = digits.iter().rev().enumerate().map(doubled).sum();
    sum % 10 == 0 && digits.iter().any(|digit| *digit != digits.first().copied().unwrap_or_default())
}

/// Lengths by country: the IBAN registry.
const IBANS: &[(&str, usize)] = &[
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NL", 18),
    ("NO", 15),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("SA", 24),
    ("SC", 31),
    ("SD", 18),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
];

/// An account's number (ISO 13616), perhaps with something behind it.
fn iban(text: &str) -> Option<usize> {
    let country = text.get(..2)?;
    let (_, length) = IBANS.iter().find(|(code, _)| *code == country)?;
    let signs: Vec<(usize, char)> = text.char_indices().filter(|(_, c)| *c != ' ').collect();
    let (end, _) = *signs.get(length.checked_sub(1)?)?;
    // Not the start of a longer word.
    if text.get(end + 1..).and_then(|rest| rest.chars().next()).is_some_and(|next| next != ' ') {
        return None;
    }
    let own = signs.get(..*length)?;
    let turned = own.iter().skip(4).chain(own.iter().take(4));
    let remainder = turned
        .filter_map(|(_, c)| c.to_digit(36))
        .fold(0, |sum, value| if value > 9 { (sum * 100 + value) % 97 } else { (sum * 10 + value) % 97 });
    (remainder == 1).then_some(end + 1)
}

/// No area 000, 666 or above 899, no group 00, no serial 0000.
fn us_ssn(text: &str) -> bool {
    let mut parts = text.split('-');
    let (area, group, serial) = (parts.next(), parts.next(), parts.next());
    area.is_some_and(|area| area != "000" && area != "666" && !area.starts_with('9'))
        && group.is_some_and(|group| group != "00")
        && serial.is_some_and(|serial| serial != "0000")
}

/// The letter is the number modulo 23; X, Y and Z stand for 0, 1 and 2.
fn es_dni(text: &str) -> bool {
    const LETTERS: &str = "TRWAGMYFPDXBNJZSQVHLCKE";
    let number = text.chars().filter_map(|c| match c {
        'X' => Some(0),
        'Y' => Some(1),
        'Z' => Some(2),
        c => c.to_digit(10),
    });
    let number = number.take(8).fold(0, |sum, digit| sum * 10 + digit);
    let expected = usize::try_from(number % 23).ok().and_then(|at| LETTERS.chars().nth(at));
    expected.is_some() && text.chars().last() == expected
}

/// The last two digits are weighted sums of those before them.
fn br_cpf(text: &str) -> bool {
    let digits = digits(text);
    let sign = |upto: usize| {
        let weights = (2..).take(upto).collect::<Vec<u32>>();
        let sum: u32 = digits.iter().take(upto).zip(weights.iter().rev()).map(|(digit, weight)| digit * weight).sum();
        sum * 10 % 11 % 10
    };
    digits.len() == 11
        && digits.iter().any(|digit| Some(digit) != digits.first())
        && digits.get(9) == Some(&sign(9))
        && digits.get(10) == Some(&sign(10))
}

/// ISO 7064 mod 11,10; of the first ten digits exactly one stands twice or thrice.
fn de_tax_id(text: &str) -> bool {
    let digits = digits(text);
    let (Some(last), Some(first)) = (digits.get(10), digits.get(..10)) else { return false };
    let times = |digit: u32| first.iter().filter(|d| **d == digit).count();
    let repeated: Vec<usize> = (0..10).map(times).filter(|times| *times > 1).collect();
    let product = first.iter().fold(10, |product, digit| {
        let sum = (digit + product) % 10;
        2 * (if sum == 0 { 10 } else { sum }) % 11
    });
    matches!(repeated.as_slice(), [2 | 3]) && (11 - product) % 10 == *last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(pattern: &str, text: &str) -> Option<usize> {
        Check::of(pattern).unwrap().length(text)
    }

    #[test]
    fn numbers_are_told_from_numbers_that_look_so() {
        for (pattern, good, bad) in [
            ("payment_card", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("payment_card", "378282246310005", "378282246310006"),
            ("payment_card", "5555-5555-5555-4444", "4444-4444-4444-4444"),
            ("iban", "DE89 3704 0044 0532 0130 00", "DE88 3704 0044 0532 0130 00"),
            ("iban", "GB82WEST12345698765432", "GB82WEST1234569876543"),
            ("iban", "NO9386011117947", "ZZ9386011117947"),
            ("us_ssn", "078-05-1120", "000-05-1120"),
            ("us_ssn", "899-05-1120", "900-05-1120"),
            ("es_dni", "12345678Z", "12345678A"),
            ("es_dni", "X1234567L", "X1234567T"),
            ("br_cpf", "529.982.247-25", "529.982.247-26"),
            ("br_cpf", "52998224725", "11111111111"),
            ("de_tax_id", "86095742719", "86095742718"),
            ("de_tax_id", "47036892816", "12345678901"),
            ("ip_address", "192.0.2.1", "192.0.2.256"),
            ("ip_address", "2001:db8::1", "12:30:45"),
        ] {
            assert_eq!(length(pattern, good), Some(good.len()), "{pattern} {good}");
            assert_eq!(length(pattern, bad), None, "{pattern} {bad}");
        }
        assert!(Check::of("email").is_none());
    }

    #[test]
    fn what_follows_a_number_is_no_part_of_it() {
        assert_eq!(length("payment_card", "4111 1111 1111 1111 12"), Some(19));
        assert_eq!(length("iban", "DE89370400440532013000 AND MORE"), Some(22));
        assert_eq!(length("iban", "DE89370400440532013000X"), None);
    }
}
