-- Former admins whose subject need not be known: what was issued to this verified address before counts no more in the account.
CREATE TABLE IF NOT EXISTS "Alchemi_CutOffAddressTable" (
    account_id    TEXT   NOT NULL REFERENCES "Alchemi_AccountTable" (account_id) ON DELETE CASCADE,
    user_email    TEXT   NOT NULL,
    issued_before BIGINT NOT NULL,
    PRIMARY KEY (account_id, user_email)
);
