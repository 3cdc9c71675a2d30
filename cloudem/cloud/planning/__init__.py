"""Which machines to rent: what each would take and cost, before anything is rented."""
