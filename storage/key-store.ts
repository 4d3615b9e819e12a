import { createPrivateKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { open, readdir, readFile, rename, stat, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { errorCode } from './errors.js'
import { closeToOthers, giveFileToOwner, makeFolder } from './file-owner.js'

/** Milliseconds after which a key that was replaced is removed: no token lives as long. */
const keptFor = 7 * 86_400_000

/** A signing key. The newest signs, all of them verify. */
export interface SigningKey {
  /** When it was made, in milliseconds since 1970. */
  readonly createdAt: number
  readonly key: KeyObject
}

/**
 * The signing keys of a data folder: one PEM file each, readable by its owner alone, named after the time it
 * was made.
 */
export class KeyStore {
  readonly #directory: string

  constructor(directory: string) {
    this.#directory = directory
  }

  /** Makes the first key when there is none. */
  async prepare(now: number): Promise<void> {
    await makeFolder(this.#directory)
    await closeToOthers(this.#directory)
    if ((await this.#names()).length === 0) await this.add(now)
  }

  /** Adds a key, durably; it signs from now on. Keys that nothing signed with for long are removed. */
  async add(now: number): Promise<void> {
    const names = await this.#names()
    const latest = Math.max(0, ...names.map(createdAtOf))
    const createdAt = Math.max(now, latest + 1) // the newest name wins, also when the clock went back
    const { privateKey } = generateKeyPairSync('ed25519')
    await this.#write(`${createdAt}.pem`, privateKey.export({ type: 'pkcs8', format: 'pem' }).toString())
    for (const name of names) {
      const isLatest = createdAtOf(name) === latest
      if (!isLatest && createdAtOf(name) < now - keptFor) await unlink(join(this.#directory, name))
    }
  }

  /** Newest first. @throws when a file does not hold an Ed25519 key */
  async load(): Promise<SigningKey[]> {
    const names = (await this.#names()).sort((a, b) => createdAtOf(b) - createdAtOf(a))
    return Promise.all(
      names.map(async (name) => ({
        createdAt: createdAtOf(name),
        key: parseSigningKey(await readFile(join(this.#directory, name), 'utf8')),
      })),
    )
  }

  /** Changes whenever a key was added or removed. */
  async state(): Promise<string> {
    return (await this.#names()).sort().join() // not the folder's time: it stands still for milliseconds
  }

  async #names(): Promise<string[]> {
    try {
      return (await readdir(this.#directory)).filter((name) => /^\d+\.pem$/.test(name))
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return []
      throw error
    }
  }

  async #write(name: string, text: string): Promise<void> {
    const path = join(this.#directory, name)
    const file = await open(`${path}.new`, 'wx', 0o600)
    try {
      await file.writeFile(text)
      // Root may rotate the keys of a server that runs as another user: it must be able to read them.
      await giveFileToOwner(file, this.#directory)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(`${path}.new`, path)
    const directory = await open(this.#directory, 'r')
    try {
      await directory.sync()
    } finally {
      await directory.close()
    }
  }
}

/** Milliseconds for which a key verifies that its file no longer holds: longer than any token lives. */
const keptAfterReplacing = 2 * 3_600_000

/** What happened to a file that was watched: a new key, or trouble with what is in it now. */
export type KeyFileObserver = (trouble: Error | undefined) => void

/**
 * The signing key in a file that somebody else looks after, and replaces when he likes. What it held before verifies
 * for as long as tokens live; while it holds no key, the last one stays.
 */
export class KeyFile {
  readonly #path: string
  readonly #onChange: KeyFileObserver
  #key: KeyObject | undefined
  #replaced: readonly { readonly key: KeyObject; readonly until: number }[] = []

  /** @param onChange hears of each change after the first reading */
  constructor(path: string, onChange: KeyFileObserver) {
    this.#path = path
    this.#onChange = onChange
  }

  /** Newest first. @throws when the file has never held an Ed25519 key since this process began */
  async load(): Promise<readonly KeyObject[]> {
    const old = this.#key
    try {
      this.#take(parseSigningKey(await readFile(this.#path, 'utf8')))
    } catch (error) {
      if (old === undefined) throw error
      this.#onChange(error instanceof Error ? error : new Error('unknown error'))
    }
    const current = this.#key === undefined ? [] : [this.#key]
    return [...current, ...this.#verifying().map(({ key }) => key)]
  }

  /** Changes when the file is replaced or written to, and when a key that it held before has had its time. */
  async state(): Promise<string> {
    const old = this.#verifying().length
    try {
      const { mtimeNs, ctimeNs, ino, size } = await stat(this.#path, { bigint: true })
      return `${mtimeNs}-${ctimeNs}-${ino}-${size} ${old}`
    } catch (error) {
      return `${errorCode(error)} ${old}`
    }
  }

  #take(key: KeyObject): void {
    const old = this.#key
    this.#key = key
    if (old === undefined || old.equals(key)) return
    const until = performance.now() + keptAfterReplacing
    this.#replaced = [{ key: old, until }, ...this.#verifying()].filter((one) => !one.key.equals(key))
    this.#onChange(undefined)
  }

  #verifying() {
    return this.#replaced.filter(({ until }) => until > performance.now())
  }
}

/** Reads a PEM text. @throws Error with a sentence when it does not hold an Ed25519 private key */
export function parseSigningKey(pem: string): KeyObject {
  let key: KeyObject
  try {
    key = createPrivateKey(pem)
  } catch {
    throw new Error('a signing key must be an unencrypted Ed25519 private key in PEM form')
  }
  if (key.asymmetricKeyType !== 'ed25519') throw new Error('a signing key must be an Ed25519 key')
  return key
}

function createdAtOf(name: string): number {
  return Number.parseInt(name, 10)
}
