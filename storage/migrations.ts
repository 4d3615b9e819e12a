import type { Database } from 'better-sqlite3'
import { laterMigrations, type Migration } from './sqlite-later-migrations.js'
import { accessTriggers, mirrorTriggers, quotaTriggers, quotaUploadTriggers } from './sqlite-triggers.js'

/*
 * Digests are kept as text: readable in any SQLite shell, and the tables that repeat them often point at a row
 * by its id instead. `bytes` is the last column of `manifest` so that a query for the other columns does not
 * touch its pages. Times are milliseconds since 1970.
 */
const migrations: readonly Migration[] = [
  {
    version: 1,
    sql: `
      CREATE TABLE repository (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_at INTEGER NOT NULL
      ) STRICT;

      CREATE TABLE blob (
        id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL CHECK (size >= 0),
        created_at INTEGER NOT NULL
      ) STRICT;

      CREATE TABLE blob_link (
        repository_id INTEGER NOT NULL REFERENCES repository (id),
        blob_id INTEGER NOT NULL REFERENCES blob (id),
        linked_at INTEGER NOT NULL,
        PRIMARY KEY (repository_id, blob_id)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX blob_link_by_blob ON blob_link (blob_id);

      CREATE TABLE manifest (
        id INTEGER PRIMARY KEY,
        repository_id INTEGER NOT NULL REFERENCES repository (id),
        digest TEXT NOT NULL,
        media_type TEXT NOT NULL,
        size INTEGER NOT NULL,
        subject TEXT,
        artifact_type TEXT,
        annotations TEXT,
        created_at INTEGER NOT NULL,
        bytes BLOB NOT NULL,
        UNIQUE (repository_id, digest)
      ) STRICT;
      CREATE INDEX manifest_by_subject ON manifest (repository_id, subject, id) WHERE subject IS NOT NULL;

      CREATE TABLE manifest_child (
        repository_id INTEGER NOT NULL,
        digest TEXT NOT NULL,
        manifest_id INTEGER NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('blob', 'manifest')),
        PRIMARY KEY (repository_id, digest, manifest_id)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX manifest_child_by_manifest ON manifest_child (manifest_id);

      CREATE TABLE tag (
        repository_id INTEGER NOT NULL REFERENCES repository (id),
        name TEXT NOT NULL,
        manifest_id INTEGER NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (repository_id, name)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX tag_by_manifest ON tag (manifest_id);

      CREATE TABLE upload (
        id TEXT PRIMARY KEY,
        repository TEXT NOT NULL,
        owner TEXT NOT NULL,
        algorithm TEXT NOT NULL,
        offset INTEGER NOT NULL CHECK (offset >= 0),
        digest TEXT,
        holder TEXT,
        started_at INTEGER NOT NULL,
        used_at INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX upload_by_repository ON upload (repository);
      CREATE INDEX upload_by_use ON upload (used_at);

      CREATE TABLE total (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        blobs INTEGER NOT NULL,
        blob_bytes INTEGER NOT NULL
      ) STRICT;
      INSERT INTO total VALUES (1, 0, 0);
      CREATE TRIGGER blob_added AFTER INSERT ON blob BEGIN
        UPDATE total SET blobs = blobs + 1, blob_bytes = blob_bytes + new.size;
      END;
      CREATE TRIGGER blob_removed AFTER DELETE ON blob BEGIN
        UPDATE total SET blobs = blobs - 1, blob_bytes = blob_bytes - old.size;
      END;
    `,
  },
  {
    version: 2,
    sql: `
      CREATE TABLE user (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        password_hash TEXT NOT NULL,
        is_admin INTEGER NOT NULL,
        is_disabled INTEGER NOT NULL DEFAULT 0,
        epoch INTEGER NOT NULL DEFAULT 1,
        created_at INTEGER NOT NULL
      ) STRICT;

      CREATE TABLE user_group (
        user_id INTEGER NOT NULL REFERENCES user (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        PRIMARY KEY (user_id, name)
      ) STRICT, WITHOUT ROWID;

      CREATE TABLE access_token (
        id TEXT PRIMARY KEY,
        user_id INTEGER NOT NULL REFERENCES user (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        secret_hash TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        used_at INTEGER,
        UNIQUE (user_id, name)
      ) STRICT, WITHOUT ROWID;

      CREATE TABLE access_grant (
        kind TEXT NOT NULL CHECK (kind IN ('user', 'group', 'authenticated', 'anonymous')),
        name TEXT NOT NULL,
        pattern TEXT NOT NULL,
        permission TEXT NOT NULL CHECK (permission IN ('pull', 'push', 'delete', 'admin')),
        PRIMARY KEY (kind, name, pattern, permission)
      ) STRICT, WITHOUT ROWID;

      CREATE TABLE access_state (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        version INTEGER NOT NULL
      ) STRICT;
      INSERT INTO access_state VALUES (1, 1);

      CREATE TABLE probe (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        checked_at INTEGER NOT NULL
      ) STRICT;
      INSERT INTO probe VALUES (1, 0);
      ${accessTriggers}
    `,
  },
  {
    version: 3,
    sql: `
      ALTER TABLE repository ADD COLUMN mirror TEXT;
      ALTER TABLE tag ADD COLUMN checked_at INTEGER;
      ALTER TABLE upload ADD COLUMN size INTEGER;

      CREATE TABLE lease (
        key TEXT PRIMARY KEY,
        holder TEXT NOT NULL
      ) STRICT, WITHOUT ROWID;

      CREATE TABLE mirror (
        name TEXT PRIMARY KEY,
        blobs INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        hits INTEGER NOT NULL DEFAULT 0,
        misses INTEGER NOT NULL DEFAULT 0,
        bytes_fetched INTEGER NOT NULL DEFAULT 0,
        bytes_saved INTEGER NOT NULL DEFAULT 0,
        health TEXT,
        health_at INTEGER
      ) STRICT, WITHOUT ROWID;

      CREATE TABLE mirror_blob (
        mirror TEXT NOT NULL,
        blob_id INTEGER NOT NULL REFERENCES blob (id),
        size INTEGER NOT NULL,
        used_at INTEGER NOT NULL,
        PRIMARY KEY (mirror, blob_id)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX mirror_blob_by_use ON mirror_blob (mirror, used_at);
      CREATE INDEX mirror_blob_by_blob ON mirror_blob (blob_id);
      ${mirrorTriggers}
    `,
  },
  {
    // When a manifest was used stands in a table of its own: its row ends with its bytes, which each change copies.
    version: 4,
    sql: `
      ALTER TABLE blob ADD COLUMN state TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'condemned'));
      ALTER TABLE blob ADD COLUMN holder TEXT;
      CREATE INDEX blob_condemned ON blob (id) WHERE state = 'condemned';

      ALTER TABLE upload ADD COLUMN finishing TEXT;
      CREATE INDEX upload_by_finishing ON upload (finishing) WHERE finishing IS NOT NULL;

      ALTER TABLE tag ADD COLUMN pulled_at INTEGER;
      CREATE TABLE manifest_use (
        manifest_id INTEGER PRIMARY KEY REFERENCES manifest (id) ON DELETE CASCADE,
        leased_at INTEGER,
        pulled_at INTEGER
      ) STRICT;

      CREATE TABLE collection (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        index_made_at INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        blobs INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        ended_at INTEGER,
        milliseconds INTEGER
      ) STRICT;
      INSERT INTO collection
        SELECT 1, coalesce(min(created_at), CAST(unixepoch('subsec') * 1000 AS INTEGER)), 0, 0, 0, NULL, NULL
        FROM repository;
    `,
  },
  {
    // A damaged blob stays live: what names it still does, and the next push of it brings its bytes back.
    version: 5,
    sql: `
      ALTER TABLE blob ADD COLUMN damage TEXT CHECK (damage IN ('missing', 'altered'));
      CREATE INDEX blob_damaged ON blob (id) WHERE damage IS NOT NULL;
      CREATE INDEX blob_held ON blob (id) WHERE holder IS NOT NULL;

      CREATE TABLE verification (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        phase TEXT NOT NULL,
        position INTEGER NOT NULL,
        started_at INTEGER NOT NULL,
        blobs INTEGER NOT NULL,
        bytes INTEGER NOT NULL
      ) STRICT;
    `,
  },
  {
    // A folder with blobs may have been left by a crash: nobody has written down whether it was.
    version: 6,
    sql: `
      ALTER TABLE verification ADD COLUMN problems INTEGER NOT NULL DEFAULT 0;

      CREATE TABLE service (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        is_stopped INTEGER NOT NULL,
        last_blob INTEGER NOT NULL,
        verified_at INTEGER,
        problems INTEGER
      ) STRICT;
      INSERT INTO service SELECT 1, NOT EXISTS (SELECT 1 FROM blob), 0, NULL, NULL;
    `,
  },
  {
    version: 7,
    sql: `
      ALTER TABLE upload ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0;

      CREATE TABLE quota (
        pattern TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        used INTEGER NOT NULL
      ) STRICT, WITHOUT ROWID;

      CREATE TABLE quota_repository (
        repository TEXT NOT NULL,
        pattern TEXT NOT NULL REFERENCES quota (pattern) ON DELETE CASCADE,
        PRIMARY KEY (repository, pattern)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX quota_repository_by_pattern ON quota_repository (pattern);
      ${quotaTriggers}
      ${quotaUploadTriggers}
    `,
  },
  {
    version: 8,
    sql: `
      ALTER TABLE mirror ADD COLUMN evicted_blobs INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE mirror ADD COLUMN evicted_bytes INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE mirror ADD COLUMN sync TEXT;
    `,
  },
  {
    // Deleted manifests stand in tables of their own: whoever serves cannot come upon one by mistake.
    version: 9,
    sql: `
      CREATE TABLE tag_history (
        id INTEGER PRIMARY KEY,
        repository_id INTEGER NOT NULL REFERENCES repository (id),
        name TEXT NOT NULL,
        digest TEXT,
        previous TEXT,
        how TEXT NOT NULL CHECK (how IN ('push', 'delete', 'retention', 'restore')),
        user TEXT,
        at INTEGER NOT NULL
      ) STRICT;
      CREATE INDEX tag_history_by_tag ON tag_history (repository_id, name);
      CREATE INDEX tag_history_by_previous ON tag_history (repository_id, previous, at)
        WHERE previous IS NOT NULL;

      CREATE TABLE deleted_manifest (
        id INTEGER PRIMARY KEY,
        repository_id INTEGER NOT NULL REFERENCES repository (id),
        digest TEXT NOT NULL,
        media_type TEXT NOT NULL,
        size INTEGER NOT NULL,
        subject TEXT,
        artifact_type TEXT,
        annotations TEXT,
        created_at INTEGER NOT NULL,
        deleted_at INTEGER NOT NULL,
        bytes BLOB NOT NULL,
        UNIQUE (repository_id, digest)
      ) STRICT;
      CREATE INDEX deleted_manifest_by_subject ON deleted_manifest (repository_id, subject)
        WHERE subject IS NOT NULL;
      CREATE INDEX deleted_manifest_by_time ON deleted_manifest (deleted_at);

      CREATE TABLE deleted_child (
        digest TEXT NOT NULL,
        repository_id INTEGER NOT NULL,
        deleted_id INTEGER NOT NULL REFERENCES deleted_manifest (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('blob', 'manifest')),
        is_linked INTEGER NOT NULL,
        PRIMARY KEY (digest, repository_id, deleted_id)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX deleted_child_by_manifest ON deleted_child (deleted_id);

      CREATE TABLE running_time (
        began_at INTEGER PRIMARY KEY,
        ended_at INTEGER NOT NULL
      ) STRICT;
      INSERT INTO running_time SELECT t, t FROM (SELECT max(updated_at) AS t FROM tag) WHERE t IS NOT NULL;
    `,
  },
  ...laterMigrations,
]

/** The schema that this version of the program reads and writes. */
export const schemaVersion = migrations.length

/** The data folder was written by a newer version of the program. */
export class NewerSchemaError extends Error {
  override readonly name = 'NewerSchemaError'
}

/** @throws NewerSchemaError */
export function refuseNewerSchema(version: number): void {
  if (version <= schemaVersion) return
  throw new NewerSchemaError(
    `The data folder has schema version ${version}, but this program knows versions up to ${schemaVersion}: start a newer Boathouse on it.`,
  )
}

/**
 * Brings a database to {@link schemaVersion}, each step in a transaction of its own together with its number:
 * an interruption leaves the database at a version, never between two.
 * @param target an older version to stop at, as tests of migrations need it
 * @throws NewerSchemaError, with nothing changed
 */
export function migrate(db: Database, target = schemaVersion): void {
  const current = Number(db.pragma('user_version', { simple: true }))
  refuseNewerSchema(current)
  for (const { version, sql } of migrations.slice(current, target)) {
    db.transaction(() => {
      db.exec(sql)
      db.pragma(`user_version = ${version}`)
    }).immediate()
  }
}
