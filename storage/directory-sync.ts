import { type FileHandle, open } from 'node:fs/promises'

interface Sync {
  running: Promise<void> | undefined
  next: Promise<void> | undefined
}

/**
 * Makes directory entries durable. Callers that ask while a sync of the same directory runs share the next
 * one: it covers every rename that was made before it begins.
 */
export class DirectorySync {
  readonly #handles = new Map<string, Promise<FileHandle>>()
  readonly #syncs = new Map<string, Sync>()

  /** Resolves when everything that was renamed or created in the directory before this call is durable. */
  sync(directory: string): Promise<void> {
    let state = this.#syncs.get(directory)
    if (state === undefined) {
      state = { running: undefined, next: undefined }
      this.#syncs.set(directory, state)
    }
    if (state.running === undefined) return this.#run(directory, state)
    state.next ??= this.#after(state.running, directory, state)
    return state.next
  }

  async #after(running: Promise<void>, directory: string, state: Sync): Promise<void> {
    await running.catch(() => undefined) // its own callers hear of it
    state.next = undefined
    await this.#run(directory, state)
  }

  #run(directory: string, state: Sync): Promise<void> {
    const running = this.#syncNow(directory).finally(() => {
      if (state.running === running) state.running = undefined
    })
    state.running = running
    return running
  }

  async #syncNow(directory: string): Promise<void> {
    let handle = this.#handles.get(directory)
    if (handle === undefined) {
      handle = open(directory, 'r')
      this.#handles.set(directory, handle)
      handle.catch(() => this.#handles.delete(directory))
    }
    const opened = await handle
    await opened.sync()
  }

  async close(): Promise<void> {
    const handles = await Promise.allSettled(this.#handles.values())
    this.#handles.clear()
    await Promise.all(
      handles.map((handle) => (handle.status === 'fulfilled' ? handle.value.close() : undefined)),
    )
  }
}
