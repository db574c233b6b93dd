/* A program that never stops writing to an SQLite database, and one that looks at it.
 *
 *   ledger write FILE    transaction after transaction: an entry, and the sum of all entries
 *   ledger sql FILE SQL  print what SQL says, a line for each row
 *
 * Each entry names the life of the machine in which it was begun (/run/hutch/generation). The few
 * declarations stand here so that it takes the library alone, without its header.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct sqlite3 sqlite3;
int sqlite3_open(const char *, sqlite3 **);
int sqlite3_busy_timeout(sqlite3 *, int);
int sqlite3_exec(sqlite3 *, const char *, int (*)(void *, int, char **, char **), void *, char **);

static int print(void *unused, int count, char **values, char **names) {
    (void)unused;
    (void)names;
    for (int i = 0; i < count; i++)
        printf("%s%s", i ? "|" : "", values[i] ? values[i] : "");
    putchar('\n');
    return 0;
}

static void run(sqlite3 *db, const char *sql) {
    char *failure = NULL;
    if (sqlite3_exec(db, sql, print, NULL, &failure) != 0) {
        printf("failed: %s\n", failure ? failure : "?");
        exit(1);
    }
}

static int life(void) {
    int number = 0;
    FILE *file = fopen("/run/hutch/generation", "r");
    if (file != NULL) {
        if (fscanf(file, "%d", &number) != 1)
            number = -1;
        fclose(file);
    }
    return number;
}

int main(int argc, char **argv) {
    sqlite3 *db = NULL;
    if (argc < 3 || sqlite3_open(argv[2], &db) != 0)
        return 2;
    sqlite3_busy_timeout(db, 30000);
    if (strcmp(argv[1], "sql") == 0) {
        run(db, argv[3]);
        return 0;
    }
    run(db, "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=40;"
            "CREATE TABLE IF NOT EXISTS entries(n INTEGER PRIMARY KEY, life INTEGER, filler BLOB);"
            "CREATE TABLE IF NOT EXISTS total(sum INTEGER);"
            "INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);");
    for (;;) {
        char sql[400];
        snprintf(sql, sizeof sql,
                 "BEGIN IMMEDIATE;"
                 "INSERT INTO entries SELECT coalesce(max(n), 0) + 1, %d, randomblob(500) FROM entries;"
                 "UPDATE total SET sum = sum + (SELECT max(n) FROM entries);"
                 "COMMIT;",
                 life());
        run(db, sql);
        usleep(10000); /* others are to have the processor, too */
    }
}
