import { entrySizes } from './quota-store.js'

/*
 * What repositories hold, in SQL. Each quota has three sums: `used`, the bytes of what its repositories hold; `waiting`,
 * the part of it that was deleted; `overhead`, what rows and files take beside these bytes. A repository that is a
 * mirror's counts for none. All of this is written into a step of migrations.ts: a change is a new step.
 */

const sumOf = (what: string, from: string) => `(SELECT coalesce(sum(${what}), 0) FROM ${from})`
const countOf = (from: string) => `(SELECT count(*) FROM ${from})`

/** Expressions for what a repository holds now, each from its tables. @param name an expression for its name */
export function heldBy(name: string): {
  readonly used: string
  readonly waiting: string
  readonly overhead: string
} {
  const own = (table: string) =>
    `repository r JOIN ${table} x ON x.repository_id = r.id WHERE r.name = ${name}`
  const links = `repository r JOIN blob_link l ON l.repository_id = r.id JOIN blob b ON b.id = l.blob_id
    WHERE r.name = ${name}`
  const left = `waiting_blob WHERE repository = ${name}`
  const uploads = `upload WHERE repository = ${name}`
  const { blob, manifest, tag, change, upload } = entrySizes
  const waiting = `(${sumOf('size', left)} + ${sumOf('x.size', own('deleted_manifest'))})`
  return {
    waiting,
    used: `(${waiting} + ${sumOf('b.size', links)} + ${sumOf('x.size', own('manifest'))}
      + ${sumOf('max(offset, reserved)', uploads)})`,
    overhead: `(${blob} * (${countOf(own('blob_link'))} + ${countOf(left)})
      + ${manifest} * (${countOf(own('manifest'))} + ${countOf(own('deleted_manifest'))})
      + ${tag} * ${countOf(own('tag'))} + ${change} * ${countOf(own('tag_history'))}
      + ${upload} * ${countOf(uploads)})`,
  }
}

/** Quotas that count a repository, as a condition on `quota`. @param name an expression for its name */
const counts = (name: string) => `pattern IN (
  SELECT m.pattern FROM quota_repository m WHERE m.repository = ${name}
    AND NOT EXISTS (SELECT 1 FROM repository c WHERE c.name = m.repository AND c.mirror IS NOT NULL))`

const nameOf = (row: 'new' | 'old') => `(SELECT name FROM repository WHERE id = ${row}.repository_id)`

interface Change {
  readonly used?: string
  readonly waiting?: string
  readonly overhead: number
}

/** Triggers by which the rows of a table count as long as they are there. */
function countRows(
  table: string,
  nameFrom: (row: 'new' | 'old') => string,
  of: (row: string) => Change,
): string {
  return (['INSERT', 'DELETE'] as const)
    .map((event) => {
      const [row, sign] = event === 'INSERT' ? (['new', '+'] as const) : (['old', '-'] as const)
      const { used, waiting, overhead } = of(row)
      const changes = Object.entries({ used, waiting, overhead })
        .flatMap(([column, change]) =>
          change === undefined ? [] : [`${column} = ${column} ${sign} ${change}`],
        )
        .join(', ')
      return `CREATE TRIGGER quota_${table}_${event} AFTER ${event} ON ${table} WHEN EXISTS (SELECT 1 FROM quota) BEGIN
        UPDATE quota SET ${changes} WHERE ${counts(nameFrom(row))};
      END;`
    })
    .join('\n')
}

const held = heldBy('new.name')
const difference = (column: keyof typeof held) =>
  `${column} = ${column} + CASE WHEN new.mirror IS NULL THEN 1 ELSE -1 END * ${held[column]}`

/** Keep the sums, each change by itself. */
export const quotaSumTriggers = [
  countRows('blob_link', nameOf, (row) => ({
    used: `(SELECT size FROM blob WHERE id = ${row}.blob_id)`,
    overhead: entrySizes.blob,
  })),
  countRows(
    'waiting_blob',
    (row) => `${row}.repository`,
    (row) => ({ used: `${row}.size`, waiting: `${row}.size`, overhead: entrySizes.blob }),
  ),
  countRows('manifest', nameOf, (row) => ({ used: `${row}.size`, overhead: entrySizes.manifest })),
  countRows('deleted_manifest', nameOf, (row) => ({
    used: `${row}.size`,
    waiting: `${row}.size`,
    overhead: entrySizes.manifest,
  })),
  countRows('tag', nameOf, () => ({ overhead: entrySizes.tag })),
  countRows('tag_history', nameOf, () => ({ overhead: entrySizes.change })),
  countRows(
    'upload',
    (row) => `${row}.repository`,
    (row) => ({ used: `max(${row}.offset, ${row}.reserved)`, overhead: entrySizes.upload }),
  ),
  // The bytes of an upload count, and those that it may still write.
  `CREATE TRIGGER quota_upload_UPDATE AFTER UPDATE OF offset, reserved ON upload
   WHEN max(new.offset, new.reserved) <> max(old.offset, old.reserved) AND EXISTS (SELECT 1 FROM quota) BEGIN
     UPDATE quota SET used = used + max(new.offset, new.reserved) - max(old.offset, old.reserved)
     WHERE ${counts('new.repository')};
   END;`,
  // A repository that becomes a mirror's counts no more; one that is no mirror's any more counts with all it has.
  `CREATE TRIGGER quota_mirror_changed AFTER UPDATE OF mirror ON repository
   WHEN (old.mirror IS NULL) <> (new.mirror IS NULL) AND EXISTS (SELECT 1 FROM quota) BEGIN
     UPDATE quota SET ${(['used', 'waiting', 'overhead'] as const).map(difference).join(', ')}
     WHERE pattern IN (SELECT pattern FROM quota_repository WHERE repository = new.name);
   END;`,
  // Of a name below which nothing was ever stored nothing stays.
  ...(
    [
      ['upload', 'old.repository'],
      ['repository', 'old.name'],
    ] as const
  ).map(
    ([table, name]) => `CREATE TRIGGER quota_${table}_gone AFTER DELETE ON ${table}
   WHEN EXISTS (SELECT 1 FROM quota_repository WHERE repository = ${name}) BEGIN
     DELETE FROM quota_repository WHERE repository = ${name}
       AND NOT EXISTS (SELECT 1 FROM repository WHERE name = ${name})
       AND NOT EXISTS (SELECT 1 FROM upload WHERE repository = ${name})
       AND NOT EXISTS (SELECT 1 FROM waiting_blob WHERE repository = ${name});
   END;`,
  ),
].join('\n')

/** Whether a deleted manifest of its repository needs the blob of a row of `waiting_blob`. */
const isNeeded = `EXISTS (
  SELECT 1 FROM blob n JOIN repository o ON o.name = waiting_blob.repository
  JOIN deleted_child c ON c.digest = n.digest AND c.repository_id = o.id
  WHERE n.id = waiting_blob.blob_id AND c.is_linked = 1)`

/**
 * Keep `waiting_blob`: blobs that a repository has no right to any more, while they are on the disk on its account,
 * because one of its deleted manifests needs them, or because nobody had a right to them after it.
 */
export const waitingTriggers = `
  CREATE TRIGGER waiting_link_added AFTER INSERT ON blob_link
  WHEN EXISTS (SELECT 1 FROM waiting_blob WHERE blob_id = new.blob_id) BEGIN
    DELETE FROM waiting_blob WHERE blob_id = new.blob_id AND (repository = ${nameOf('new')} OR NOT ${isNeeded});
  END;
  CREATE TRIGGER waiting_link_removed AFTER DELETE ON blob_link
  WHEN (SELECT mirror FROM repository WHERE id = old.repository_id) IS NULL BEGIN
    INSERT INTO waiting_blob (blob_id, repository, size)
      SELECT b.id, r.name, b.size FROM blob b JOIN repository r ON r.id = old.repository_id
      WHERE b.id = old.blob_id
        AND NOT EXISTS (SELECT 1 FROM waiting_blob w WHERE w.blob_id = b.id AND w.repository = r.name)
        AND (NOT EXISTS (SELECT 1 FROM blob_link l WHERE l.blob_id = b.id) OR EXISTS (
          SELECT 1 FROM deleted_child c
          WHERE c.digest = b.digest AND c.repository_id = r.id AND c.is_linked = 1));
    DELETE FROM waiting_blob WHERE blob_id = old.blob_id AND repository <> ${nameOf('old')} AND NOT ${isNeeded}
      AND EXISTS (SELECT 1 FROM waiting_blob w WHERE w.blob_id = old.blob_id AND w.repository = ${nameOf('old')});
  END;
  CREATE TRIGGER waiting_deleted_forgotten AFTER DELETE ON deleted_child WHEN old.is_linked = 1 BEGIN
    DELETE FROM waiting_blob WHERE blob_id = (SELECT id FROM blob WHERE digest = old.digest)
      AND repository = ${nameOf('old')} AND NOT ${isNeeded}
      AND (EXISTS (SELECT 1 FROM blob_link l WHERE l.blob_id = waiting_blob.blob_id) OR EXISTS (
        SELECT 1 FROM waiting_blob w
        WHERE w.blob_id = waiting_blob.blob_id AND w.repository <> waiting_blob.repository));
  END;
  CREATE TRIGGER waiting_blob_made AFTER INSERT ON blob
  WHEN EXISTS (SELECT 1 FROM deleted_child WHERE digest = new.digest) BEGIN
    INSERT INTO waiting_blob (blob_id, repository, size)
      SELECT DISTINCT new.id, r.name, new.size FROM deleted_child c JOIN repository r ON r.id = c.repository_id
      WHERE c.digest = new.digest AND c.is_linked = 1 AND r.mirror IS NULL;
  END;
`

/** Takes up what was deleted before there was `waiting_blob`. */
export const findWaiting = `
  INSERT INTO waiting_blob (blob_id, repository, size)
    SELECT DISTINCT b.id, r.name, b.size FROM deleted_child c
    JOIN repository r ON r.id = c.repository_id JOIN blob b ON b.digest = c.digest
    WHERE c.is_linked = 1 AND r.mirror IS NULL
      AND NOT EXISTS (SELECT 1 FROM blob_link l WHERE l.repository_id = r.id AND l.blob_id = b.id);
`

/** Computes all sums anew. */
export const recountQuotas = `UPDATE quota SET (used, waiting, overhead) = (
  SELECT coalesce(sum(${heldBy('m.repository').used}), 0), coalesce(sum(${heldBy('m.repository').waiting}), 0),
    coalesce(sum(${heldBy('m.repository').overhead}), 0)
  FROM quota_repository m WHERE m.pattern = quota.pattern
    AND NOT EXISTS (SELECT 1 FROM repository c WHERE c.name = m.repository AND c.mirror IS NOT NULL));`
