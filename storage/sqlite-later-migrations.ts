import { findWaiting, quotaSumTriggers, recountQuotas, waitingTriggers } from './sqlite-quota-triggers.js'

/** One step of the schema. Steps are never changed once released: a new one is added at the end. */
export interface Migration {
  readonly version: number
  readonly sql: string
}

/** The steps behind those in migrations.ts. */
export const laterMigrations: readonly Migration[] = [
  {
    // Blobs that one mirror alone has were delivered by its upstream; of others nobody has written down by whom. A tag
    // of a mirror that was set since its upstream was asked was pushed: its repository is not the mirror's.
    version: 10,
    sql: `
      CREATE TABLE mirror_delivery (
        blob_id INTEGER NOT NULL REFERENCES blob (id) ON DELETE CASCADE,
        mirror TEXT NOT NULL,
        PRIMARY KEY (blob_id, mirror)
      ) STRICT, WITHOUT ROWID;

      UPDATE repository SET mirror = NULL WHERE mirror IS NOT NULL AND EXISTS (
        SELECT 1 FROM tag t WHERE t.repository_id = repository.id
          AND (t.checked_at IS NULL OR t.checked_at < t.updated_at));
      DELETE FROM mirror_blob WHERE NOT EXISTS (
        SELECT 1 FROM blob_link l JOIN repository r ON r.id = l.repository_id
        WHERE l.blob_id = mirror_blob.blob_id AND r.mirror = mirror_blob.mirror);
      INSERT INTO mirror_delivery SELECT m.blob_id, m.mirror FROM mirror_blob m WHERE NOT EXISTS (
        SELECT 1 FROM blob_link l JOIN repository r ON r.id = l.repository_id
        WHERE l.blob_id = m.blob_id AND r.mirror IS NOT m.mirror);

      ALTER TABLE service ADD COLUMN name TEXT;
      UPDATE service SET name = lower(hex(randomblob(16)));
    `,
  },
  {
    // Nobody can tell which refresh tokens were got with an access token and can do more than that: all of them end.
    version: 11,
    sql: `
      DELETE FROM access_token WHERE name GLOB 'login *';
      CREATE INDEX refresh_token_by_expiry ON access_token (expires_at) WHERE name GLOB 'login *';

      ALTER TABLE tag_history ADD COLUMN token TEXT;
      ALTER TABLE tag_history ADD COLUMN token_id TEXT;
    `,
  },
  {
    // The edges of a manifest with many may come before it: so they have no foreign key, and go by a trigger.
    version: 12,
    sql: `
      CREATE TABLE manifest_draft (
        id INTEGER PRIMARY KEY,
        repository_id INTEGER NOT NULL REFERENCES repository (id),
        began_at INTEGER NOT NULL
      ) STRICT;

      ALTER TABLE manifest_child RENAME TO old_child;
      DROP INDEX manifest_child_by_manifest;
      CREATE TABLE manifest_child (
        repository_id INTEGER NOT NULL,
        digest TEXT NOT NULL,
        manifest_id INTEGER NOT NULL,
        role TEXT NOT NULL CHECK (role IN ('blob', 'manifest')),
        PRIMARY KEY (repository_id, digest, manifest_id)
      ) STRICT, WITHOUT ROWID;
      INSERT INTO manifest_child SELECT repository_id, digest, manifest_id, role FROM old_child;
      DROP TABLE old_child;
      CREATE INDEX manifest_child_by_manifest ON manifest_child (manifest_id);
      CREATE TRIGGER manifest_removed AFTER DELETE ON manifest BEGIN
        DELETE FROM manifest_child WHERE manifest_id = old.id;
      END;

      ALTER TABLE upload ADD COLUMN source TEXT NOT NULL DEFAULT '';
      CREATE INDEX upload_by_source ON upload (source, used_at) WHERE source <> '';
    `,
  },
  {
    // What is on the disk counts, deleted or not, and rows count as well: see docs/decisions/0018-quotas-bound-the-disk.md.
    version: 13,
    sql: `
      ${[
        'link_added',
        'link_removed',
        'manifest_added',
        'manifest_removed',
        'upload_changed',
        'upload_removed',
      ]
        .map((name) => `DROP TRIGGER quota_${name};`)
        .join('\n')}
      ALTER TABLE quota ADD COLUMN waiting INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE quota ADD COLUMN overhead INTEGER NOT NULL DEFAULT 0;
      ALTER TABLE tag_history ADD COLUMN number INTEGER NOT NULL DEFAULT 0;

      CREATE TABLE waiting_blob (
        blob_id INTEGER NOT NULL REFERENCES blob (id) ON DELETE CASCADE,
        repository TEXT NOT NULL,
        size INTEGER NOT NULL,
        PRIMARY KEY (blob_id, repository)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX waiting_blob_by_repository ON waiting_blob (repository);
      ${findWaiting}
      ${recountQuotas}
      ${waitingTriggers}
      ${quotaSumTriggers}
    `,
  },
]
