-- Which time zones an account had before, and until when: a change moves the end of the present window, and not its
-- beginning.
CREATE TABLE IF NOT EXISTS "Alchemi_AccountCalendarTable" (
    account_id   TEXT NOT NULL PRIMARY KEY REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    former_zones TEXT NOT NULL
);
