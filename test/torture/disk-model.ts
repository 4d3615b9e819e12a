import { createHash } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Random } from './random.js'
import type { Event } from './recording.js'

/** Variants of one file's unsynced bytes, at the most. */
const mostVariants = 16

/** What may lie under some paths after a power cut: bytes, a folder, or nothing. Other paths are as they were. */
export type DiskState = ReadonlyMap<string, Buffer | 'folder' | undefined>

/** One change of a file's bytes. */
type Change = (bytes: Buffer) => Buffer

/** A file or a folder, whatever its names are. */
interface Node {
  readonly isFolder: boolean
  /** The bytes as of the last sync, and what came after it. */
  synced: Buffer
  changes: Change[]
  /** Where the next plain write goes. */
  position: number
}

/** A change of names in one folder, which happens whole or not at all. */
interface Entry {
  readonly folder: string
  readonly names: readonly (readonly [path: string, node: Node | undefined])[]
  /** A name is never taken away before the new one is there. */
  readonly after?: Entry
}

/**
 * A disk that has promised nothing but what was synced. A file's bytes that were not synced may be there, or only the
 * first of them, or without one of the writes, or as zeros. A change of a folder that was not synced may have happened
 * or not, each for itself; a file that is renamed keeps one of its names. A sync of a file says nothing of its name.
 */
export class DiskModel {
  readonly #base: (path: string) => string
  /** Names as a program sees them, and as they are on the disk for certain. */
  readonly #seen = new Map<string, Node | undefined>()
  readonly #synced = new Map<string, Node | undefined>()
  #entries: Entry[] = []

  /** @param base where a file lies as it was before */
  constructor(base: (path: string) => string) {
    this.#base = base
  }

  apply(event: Event): void {
    switch (event.kind) {
      case 'create':
        if (this.#find(event.path) === undefined) this.#name(event.path, newNode(false))
        return
      case 'mkdir':
        this.#name(event.path, newNode(true))
        return
      case 'remove':
        this.#name(event.path, undefined)
        return
      case 'link':
        this.#name(event.to, this.#find(event.path))
        return
      case 'rename':
        this.#rename(event.path, event.to)
        return
      case 'truncate': {
        const node = this.#find(event.path) ?? this.#name(event.path, newNode(false))
        node?.changes.push((bytes) => resized(bytes, event.size))
        return
      }
      case 'write':
        this.#write(event.path, event.offset, event.data)
        return
      case 'copy': {
        const source = this.#find(event.from)
        const at = this.#find(event.path)?.position ?? 0
        if (source !== undefined) {
          this.#write(event.path, undefined, contentOf(source).subarray(at, at + event.length))
        }
        return
      }
      case 'sync':
        this.#sync(event.path)
    }
  }

  /** Legal states of the disk if the power goes now: the plain ones first, then others by chance. */
  *states(random: Random, bound: number): Generator<DiskState> {
    const entries = this.#entries
    const nodes = [
      ...new Set([...this.#seen.values(), ...this.#synced.values(), ...entries.flatMap(nodesOf)]),
    ]
    const open = nodes.filter((node) => node !== undefined && node.changes.length > 0) as Node[]
    const variants = new Map(open.map((node) => [node, variantsOf(node)]))
    const everything = new Set(entries)
    const make = (chosen: ReadonlySet<Entry>, bytes: (node: Node) => Buffer) => this.#make(chosen, bytes)
    const full = (node: Node) => contentOf(node)
    const bare = (node: Node) => node.synced
    yield make(everything, full)
    yield make(new Set(), bare)
    yield make(everything, bare)
    yield make(new Set(), full)
    for (const entry of entries) {
      yield make(new Set(entries.filter((other) => other !== entry)), full)
      yield make(new Set([entry]), full)
    }
    for (const [node, all] of variants) {
      for (const one of all) yield make(everything, (other) => (other === node ? one : contentOf(other)))
    }
    for (let count = 0; count < bound && entries.length + open.length > 0; count++) {
      const chosen = new Set(entries.filter(() => random.chance(0.5)))
      const bytes = new Map(
        open.map((node) => [node, random.pick(variants.get(node) ?? []) ?? contentOf(node)]),
      )
      yield make(chosen, (node) => bytes.get(node) ?? contentOf(node))
    }
  }

  #make(chosen: ReadonlySet<Entry>, bytes: (node: Node) => Buffer): DiskState {
    const names = new Map(this.#synced)
    for (const entry of this.#entries) {
      if (!chosen.has(entry) || (entry.after !== undefined && !this.#isDone(entry.after, chosen))) continue
      for (const [path, node] of entry.names) names.set(path, node)
    }
    const state = new Map<string, Buffer | 'folder' | undefined>()
    for (const path of this.#seen.keys()) {
      const node = names.get(path)
      const parent = dirname(path)
      const hasParent = !names.has(parent) || names.get(parent) !== undefined
      if (node === undefined || !hasParent) state.set(path, undefined)
      else state.set(path, node.isFolder ? 'folder' : bytes(node))
    }
    return state
  }

  #isDone(entry: Entry, chosen: ReadonlySet<Entry>): boolean {
    return chosen.has(entry) || !this.#entries.includes(entry)
  }

  #write(path: string, offset: number | undefined, data: Buffer): void {
    const node = this.#find(path)
    if (node === undefined) return
    const at = offset ?? node.position
    if (offset === undefined) node.position += data.length
    node.changes.push((bytes) => {
      const whole = resized(bytes, Math.max(bytes.length, at + data.length))
      data.copy(whole, at)
      return whole
    })
  }

  #rename(from: string, to: string): void {
    const node = this.#find(from)
    this.#find(to)
    this.#seen.set(from, undefined)
    this.#seen.set(to, node)
    if (dirname(from) === dirname(to)) {
      this.#entries.push({
        folder: dirname(to),
        names: [
          [from, undefined],
          [to, node],
        ],
      })
      return
    }
    const added: Entry = { folder: dirname(to), names: [[to, node]] }
    this.#entries.push(added, { folder: dirname(from), names: [[from, undefined]], after: added })
  }

  #name(path: string, node: Node | undefined): Node | undefined {
    this.#find(path)
    this.#seen.set(path, node)
    this.#entries.push({ folder: dirname(path), names: [[path, node]] })
    return node
  }

  #sync(path: string): void {
    const node = this.#find(path)
    if (node !== undefined && !node.isFolder) {
      node.synced = contentOf(node)
      node.changes = []
      return
    }
    const due = new Set(this.#entries.filter(({ folder }) => folder === path))
    for (const { after } of [...due]) if (after !== undefined) due.add(after)
    for (const entry of this.#entries) {
      if (due.has(entry)) for (const [name, named] of entry.names) this.#synced.set(name, named)
    }
    this.#entries = this.#entries.filter((entry) => !due.has(entry))
  }

  /** What is under a name; looks at the files as they were before when the name is new here. */
  #find(path: string): Node | undefined {
    if (this.#seen.has(path)) return this.#seen.get(path)
    const found = statSync(this.#base(path), { throwIfNoEntry: false })
    let node: Node | undefined
    if (found?.isFile()) node = { ...newNode(false), synced: readFileSync(this.#base(path)) }
    else if (found !== undefined) return { ...newNode(true) }
    this.#seen.set(path, node)
    this.#synced.set(path, node)
    return node
  }
}

function nodesOf({ names }: Entry): (Node | undefined)[] {
  return names.map(([, node]) => node)
}

function newNode(isFolder: boolean): Node {
  return { isFolder, synced: Buffer.alloc(0), changes: [], position: 0 }
}

function contentOf({ synced, changes }: Node): Buffer {
  return changes.reduce((bytes, change) => change(bytes), synced)
}

function resized(bytes: Buffer, size: number): Buffer {
  const copy = Buffer.alloc(size)
  bytes.copy(copy)
  return copy
}

/** What may be there of a file whose last changes were not synced. */
function variantsOf(node: Node): Buffer[] {
  const { synced, changes } = node
  const apply = (some: readonly Change[]) => some.reduce((bytes, change) => change(bytes), synced)
  const whole = contentOf(node)
  const zeros = resized(synced.subarray(0, Math.min(synced.length, whole.length)), whole.length)
  const found = [
    synced,
    zeros,
    whole.subarray(0, Math.floor((synced.length + whole.length) / 2)),
    apply(changes.slice(0, -1)),
    apply(changes.slice(1)),
  ]
  const step = Math.max(1, Math.ceil((2 * changes.length) / mostVariants))
  for (let at = 0; at < changes.length; at += step) {
    found.push(apply(changes.slice(0, at)), apply(changes.filter((_, index) => index !== at)))
  }
  return found
}

const hashes = new WeakMap<Buffer, string>()

/** The same for two states that are the same. */
export function nameOf(state: DiskState): string {
  const hash = createHash('sha256')
  for (const [path, content] of [...state].sort(([one], [other]) => (one < other ? -1 : 1))) {
    hash.update(`${path} ${content instanceof Buffer ? hashOf(content) : content}\n`)
  }
  return hash.digest('hex')
}

function hashOf(bytes: Buffer): string {
  const known = hashes.get(bytes) ?? createHash('sha256').update(bytes).digest('hex')
  hashes.set(bytes, known)
  return known
}
