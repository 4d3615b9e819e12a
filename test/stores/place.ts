import type { Test } from 'tap'

/** Somewhere that keeps what stores put there: a data folder, a database, a bucket. */
export interface Place<Store> {
  /** Opens a store on the place, as a process that starts on it would; several may be open at once. */
  open(): Promise<Store>
  /** Takes back a store that a test has left open; it is closed where this is not given. */
  release?(store: Store): Promise<void>
}

/** Makes a fresh, empty place that lasts as long as the test. */
export type NewPlace<Store> = (t: Test) => Promise<Place<Store>>

/** A place in a test's hands: what is left open is taken care of when the test ends. */
export interface OpenPlace<Store> extends Place<Store> {
  close(store: Store): Promise<void>
}

/** Makes a fresh place for the test. */
export async function openPlace<Store extends { close(): Promise<void> }>(
  t: Test,
  newPlace: NewPlace<Store>,
): Promise<OpenPlace<Store>> {
  const place = await newPlace(t)
  const opened = new Set<Store>()
  t.teardown(async () => {
    await Promise.all([...opened].map((store) => place.release?.(store) ?? store.close()))
  })
  return {
    async open() {
      const store = await place.open()
      opened.add(store)
      return store
    },
    async close(store) {
      opened.delete(store)
      await store.close()
    },
  }
}
