-- Which database this is: what was admitted against one is not booked in another.
CREATE TABLE IF NOT EXISTS "Alchemi_DatabaseTable" (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    id       TEXT   NOT NULL
);
INSERT INTO "Alchemi_DatabaseTable" (only_row, id) VALUES (1, replace(CAST(gen_random_uuid() AS TEXT), '-', ''))
    ON CONFLICT (only_row) DO NOTHING;
