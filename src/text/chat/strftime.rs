//! Dates as chat templates print them.

use std::time::SystemTime;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A time in UTC, by Python's `strftime`: years, months, days, weekdays, hours, minutes and seconds, in English.
pub(super) fn strftime(format: &str, time: SystemTime) -> Result<String, String> {
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_secs() as i64,
        Err(before) => -(before.duration().as_secs_f64().ceil() as i64),
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[days.rem_euclid(7) as usize]);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        text += &match letters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year.rem_euclid(100)),
            Some('m') => format!("{month:02}"),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{:02}", second % 60),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('%') => "%".into(),
            other => {
                return Err(format!("strftime_now does not know `%{}`", other.map(String::from).unwrap_or_default()))
            }
        };
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(days: i64) -> (i64, i64, i64) {
    // Years of this count begin in March, so that a leap day is a year's last (Hinnant, chrono-compatible low-level date algorithms).
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds: u64, format: &str| {
            strftime(format, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap()
        };
        assert_eq!(at(0, "%d %b %Y, %A %H:%M:%S"), "01 Jan 1970, Thursday 00:00:00");
        assert_eq!(at(951_782_399, "%F %T %a %p %I"), "2000-02-28 23:59:59 Mon PM 11");
        assert_eq!(at(951_782_400, "%e %B %y%%"), "29 February 00%");
        assert_eq!(at(1_735_689_599, "%Y-%m-%d"), "2024-12-31");
        assert_eq!(at(1_735_689_600, "%h%d"), "Jan01");
        assert_eq!(strftime("%F", SystemTime::UNIX_EPOCH - Duration::from_secs(1)).unwrap(), "1969-12-31");
        assert_eq!(strftime("%Q", SystemTime::UNIX_EPOCH).unwrap_err(), "strftime_now does not know `%Q`");
        assert!(strftime("%", SystemTime::UNIX_EPOCH).is_err());
    }
}
